"""Cost of a model (complexity, latency, memory) and its place next to the scores."""
from .complexity import Complexity, count_macs, deployed_params, measure_complexity, unique_params
from .cost_hook import CostHook
from .latency import Failure, Timing, time_interleaved
from .workload import Workload

__all__ = [
    'Complexity', 'CostHook', 'Failure', 'Timing', 'Workload', 'count_macs', 'deployed_params', 'measure_complexity',
    'time_interleaved', 'unique_params'
]
