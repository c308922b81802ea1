"""What Ray starts for a trial."""
