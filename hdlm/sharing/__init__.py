"""Export of models: the published formats, model cards, and pushing to a hub."""

from hdlm.sharing.push import push_to_hub, save_pretrained

__all__ = ["push_to_hub", "save_pretrained"]
