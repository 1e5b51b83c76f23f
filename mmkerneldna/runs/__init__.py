"""What trainings left behind: results, comparison, report, plots."""
