"""Our updates against the training curves of the published program, on one device and sharded over eight."""

import numpy as np
from golden_curves import STEPS, trainer

NAMES = ("adafactor_tiny_scan", "adamw_tiny_scan", "adafactor_factored_scan", "trainpy_adafactor")


def test_the_shifted_labels_are_the_published_decoder_inputs():
    batches = trainer("adafactor_tiny_scan").train.table
    start = np.full((STEPS, 6, 1), trainer("adafactor_tiny_scan").config.model.decoder_start_token_id)
    shifted = np.concatenate([start, batches["labels"][..., :-1]], axis=-1)
    np.testing.assert_array_equal(shifted, batches["decoder_input_ids"])
