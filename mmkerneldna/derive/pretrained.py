"""Dense checkpoints where a config or a command names one: ``init_cfg`` and ``load_from`` derive from them."""

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from ..checkpoints.reading import plain_state_dict
from ..checkpoints.remote import fetch
from .engine import derive
from .report import DeriveReport
from .rivals import own_entries, rivals_of
from .source import is_shared
from .start import takes_dense


def derive_if_dense(
    module: nn.Module, checkpoint: Mapping[str, Any], name: str, prefix: str = '', partial: bool = False
) -> DeriveReport | None:
    """Derive ``module`` if the checkpoint is a dense net's, in place.

    Args:
        module (nn.Module): with shared kernels.
        checkpoint (Mapping): what a file holds.
        name (str): of that file, for messages.
        prefix (str): of the entries that are meant.
        partial (bool): as for :func:`.engine.derive`.

    Returns:
        DeriveReport, optional: None for a checkpoint of a KernelDNA net or of dynamic layers, and for a module with dynamic
        layers alone, which start from a static kernel as they load it: the module is not touched.

    Raises:
        DeriveError: it is dense and does not fit.
        CheckpointError: it holds no weights, or NaN.
    """
    state = plain_state_dict(checkpoint, name)
    state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)} or state
    if is_shared(state) or own_entries(rivals_of(module), state) or not takes_dense(module):
        return None
    print_log(f'{name} holds a dense net: deriving {type(module).__name__} from it', logger='current')
    return derive(module, state, partial=partial)


@WEIGHT_INITIALIZERS.register_module(name='Pretrained', force=True)
class DerivingPretrainedInit(PretrainedInit):
    """mmengine's ``Pretrained``, which derives modules with shared kernels from dense checkpoints.

    mmengine looks for ``type='Pretrained'`` by name to run it after all other initialisation, so this takes the name. Any other
    module, and a KernelDNA checkpoint, is loaded as ever. Entries that the checkpoint lacks (a plugin's) stay as they are.
    """

    def __call__(self, module: nn.Module) -> None:
        """Initialise ``module``.

        Raises:
            CheckpointError: the checkpoint can't be fetched.
            DeriveError: it is dense and does not fit.
        """
        if (
            not takes_dense(module)
            or derive_if_dense(module, fetch(self.checkpoint), self.checkpoint, self.prefix or '', partial=True) is None
        ):
            return super().__call__(module)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())
