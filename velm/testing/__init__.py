"""Contract checks for plugin authors; VELM's own parts pass the same.

    from velm.testing import assert_contract
    assert_contract(lambda: MyEncoder(dim=32))       # AssertionError listing every fault, by name

Hand over a factory (anything callable without arguments that builds a fresh instance) rather than an instance:
only then can the checks see whether a second instance is restored from the first one's state.
"""

from velm.testing.contract import BASES, CHECKS, assert_contract, check
from velm.testing.data import check_dataset, check_tokenizer
from velm.testing.decoders import check_decoder
from velm.testing.encoders import check_image_encoder, check_text_encoder
from velm.testing.losses import check_loss
from velm.testing.report import LAWS, Fault, Report, Result

__all__ = [
    "BASES",
    "CHECKS",
    "LAWS",
    "Fault",
    "Report",
    "Result",
    "assert_contract",
    "check",
    "check_dataset",
    "check_decoder",
    "check_image_encoder",
    "check_loss",
    "check_text_encoder",
    "check_tokenizer",
]
