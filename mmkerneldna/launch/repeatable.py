"""Training that a kill and a resume don't change.

mmengine restores weights, optimizer, schedules and the position in the data, but no random state: augmentations and
samplers of RoIs draw other numbers after a resume. Here every draw depends on (seed, position) alone: what a worker
draws for a sample on the sample's place in the data order, what the model draws on the iteration. So the number of
workers doesn't matter either.
"""

from collections.abc import Iterator, Sequence

from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..hooks.step_seed_hook import seed_all


class PlacedIndex(int):
    """An index that remembers its (epoch, place) in the data order, also across processes."""

    place: tuple

    def __new__(cls, index: int, place: tuple = (0, 0)):
        self = super().__new__(cls, index)
        self.place = place
        return self


class SeededFetch:
    """``dataset.__getitems__`` that seeds every sample by its place; torch's fetcher prefers it to ``dataset[i]``."""

    def __init__(self, dataset, seed: int) -> None:
        self.dataset, self.key = dataset, (seed, get_rank())

    def __call__(self, indices: Sequence[int]) -> list:
        return [self._fetch(index) for index in indices]

    def _fetch(self, index: int):
        if isinstance(index, PlacedIndex):
            seed_all(*self.key, *index.place)
        return self.dataset[int(index)]


@DATA_SAMPLERS.register_module()
class PlacedSampler(Sampler):
    """Wraps any sampler so that the random draws of a sample depend on its place in the data order only.

    Args:
        dataset: the data set; it gets a seeding ``__getitems__``.
        sampler (dict): config of the sampler proper.
        seed (int, optional): of the run; mmengine passes it.
    """

    def __init__(self, dataset, sampler: dict, seed: int | None = None) -> None:
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.dataset = dataset
        self.epoch, self._skipped = 0, 0
        dataset.__getitems__ = SeededFetch(dataset, getattr(self.sampler, 'seed', 0) if seed is None else seed)
        if hasattr(self.sampler, 'skip'):  # mmengine asks by hasattr
            self.skip = self._skip

    def __iter__(self) -> Iterator[PlacedIndex]:
        for place, index in enumerate(self.sampler, start=self._skipped):
            yield PlacedIndex(index, (self.epoch, place))

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _skip(self, num_samples: int) -> None:
        self.sampler.skip(num_samples)
        self._skipped = num_samples


def make_repeatable(cfg) -> None:
    """Insert :class:`PlacedSampler` and :class:`StepSeedHook` into a training config, in place, once."""
    sampler = cfg.train_dataloader.sampler
    if sampler.get('type') != 'PlacedSampler':
        cfg.train_dataloader.sampler = dict(type='PlacedSampler', sampler=sampler)
    hooks = cfg.get('custom_hooks') or []
    if not any(hook.get('type') == 'StepSeedHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='StepSeedHook')]
