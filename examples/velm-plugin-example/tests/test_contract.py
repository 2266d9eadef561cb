"""Both encoders satisfy VELM's contract, by registered name and with non-default options."""

import pytest
from velm_plugin_example.convmixer import ConvMixer
from velm_plugin_example.textcnn import TextCNN

import velm
from velm.testing import assert_contract


@pytest.mark.parametrize("options", [{}, {"depth": 1, "kernel_size": 3, "patch_size": 8}])
def test_convmixer(options):
    assert_contract(lambda: ConvMixer(dim=16, **options))


@pytest.mark.parametrize("options", [{}, {"depth": 1, "kernel_size": 5, "dropout": 0.1}])
def test_textcnn(options):
    assert_contract(lambda: TextCNN(vocab_size=32, dim=16, **options))


def test_installed_names_lead_here():
    assert velm.image_encoders.get("convmixer") is ConvMixer
    assert velm.text_encoders.get("textcnn") is TextCNN


@pytest.mark.parametrize("encoder", [ConvMixer, lambda **options: TextCNN(vocab_size=32, **options)])
def test_an_even_kernel_is_refused(encoder):
    with pytest.raises(ValueError, match="kernel_size 4 is even"):
        encoder(kernel_size=4)
