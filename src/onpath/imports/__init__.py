"""Configs of other trainers as recipes of this one, with a report of what became of each setting."""
