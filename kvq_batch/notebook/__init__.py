"""Objects that notebooks and programs hold: tables of results, answers, maps."""
