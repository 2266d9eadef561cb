"""Contract checks for plugin authors; VELM's own parts pass the same.

    from velm.testing import assert_contract
    assert_contract(lambda: MyEncoder(dim=32))       # AssertionError listing every violation, by name

Pass a factory (a callable without arguments that builds a fresh instance) rather than an instance: the check of saving
and loading a state needs a second instance.
"""

from velm.testing.contract import BASES, CHECKS, assert_contract, check
from velm.testing.data import check_dataset, check_tokenizer
from velm.testing.decoders import check_decoder
from velm.testing.encoders import check_image_encoder, check_text_encoder
from velm.testing.losses import check_loss
from velm.testing.report import LAWS, Report

__all__ = [
    "BASES",
    "CHECKS",
    "LAWS",
    "Report",
    "assert_contract",
    "check",
    "check_dataset",
    "check_decoder",
    "check_image_encoder",
    "check_loss",
    "check_text_encoder",
    "check_tokenizer",
]
