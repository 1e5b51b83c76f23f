"""What a module costs: complexity, latency, memory."""

from .complexity import Complexity, count_macs, deployed_params, measure_complexity
from .latency import Failure, Timing, time_interleaved
from .workload import Workload

__all__ = [
    'Complexity',
    'Failure',
    'Timing',
    'Workload',
    'count_macs',
    'deployed_params',
    'measure_complexity',
    'time_interleaved',
]
