"""Export whole models: from a picture's bytes to boxes, masks or a label map, in one file."""

from .export import EndToEnd, export_whole

__all__ = ['EndToEnd', 'export_whole']
