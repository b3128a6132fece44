"""Reports: tables, plots and aims, from the CSVs of results."""
