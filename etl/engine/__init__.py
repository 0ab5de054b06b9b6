"""How a plan runs: channels, supervision, lanes, stop levels. Knows no dialect."""
