"""The Hugging Face Hub, and Weights & Biases artifacts."""
