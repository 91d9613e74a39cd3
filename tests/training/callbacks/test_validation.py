import pytest
import pytorch_lightning as pl

from latentdiff.training.callbacks.validation import ValidateLast


@pytest.mark.parametrize(("batches", "expected"), [(5, [2, 4, 5]), (4, [2, 4]), (1, [1])])
def test_the_last_batch_is_validated_once(autoencoder_module, batch, fit, batches, expected):
    when = []

    class Note(pl.Callback):
        def on_validation_end(self, trainer, module):
            when.append(module.counters.batches_seen)

    fit(
        autoencoder_module(),
        [batch(i) for i in range(batches)],
        Note(),
        ValidateLast(total=batches),
        val_check_interval=2,
    )
    assert when == expected
