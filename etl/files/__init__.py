"""Files that people load into databases and get out of them: CSV, JSON lines, Parquet."""
