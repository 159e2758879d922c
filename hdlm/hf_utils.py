"""The published place of `smart_model_loader`; see `hdlm.published.model`. Here it is also called `hdlm.load`."""

from hdlm.published.model import smart_model_loader

__all__ = ["smart_model_loader"]
