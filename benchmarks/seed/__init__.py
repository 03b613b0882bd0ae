"""The recipe of the design document that the action policy comes from, kept to show what its corrections are worth."""
