"""What we use of Apache Beam, imported without the warning it logs every time about a Google Cloud client."""

import logging


def _is_ours_to_hear(record: logging.LogRecord) -> bool:
    return "apitools" not in record.getMessage()


logging.getLogger().addFilter(_is_ours_to_hear)
try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners.portability.portable_runner import PortableRunner
    from apache_beam.runners.runner import PipelineRunner, create_runner
    from apache_beam.transforms.window import GlobalWindow
    from apache_beam.utils.windowed_value import WindowedValue
finally:
    logging.getLogger().removeFilter(_is_ours_to_hear)

__all__ = [
    "GlobalWindow",
    "PipelineOptions",
    "PipelineRunner",
    "PortableRunner",
    "StandardOptions",
    "WindowedValue",
    "beam",
    "create_runner",
]
