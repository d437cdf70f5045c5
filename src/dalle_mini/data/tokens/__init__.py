"""Token datasets: shards, batches, mixtures."""
