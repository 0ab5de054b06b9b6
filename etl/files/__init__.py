"""Files that people load into databases: CSV, also compressed."""
