"""What a user sees of a search: a live view in a terminal, plain lines elsewhere; other output goes to a log file."""

from tuner.console.console import Console
from tuner.console.quiet import quiet
from tuner.console.tables import leader_table, search_table, setting_cells, settings_table
from tuner.console.text import describe_end, describe_epoch, describe_seconds, describe_settings
from tuner.console.view import SearchView

__all__ = [
    "Console",
    "SearchView",
    "describe_end",
    "describe_epoch",
    "describe_seconds",
    "describe_settings",
    "leader_table",
    "quiet",
    "search_table",
    "setting_cells",
    "settings_table",
]
