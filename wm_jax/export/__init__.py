"""Programs for one accelerator: exported and checked on any machine.

Never trains, never serves. Imports world and below.
"""
