"""Programs for one accelerator: exported and checked on any machine.

Never trains, never serves. Imports world and below.
"""

from wm_jax.export.neuron import ExportRefusal, Finding, export_for_neuron, lint

__all__ = ["ExportRefusal", "Finding", "export_for_neuron", "lint"]
