"""What a run leaves on the disk: its folder, pictures and pages."""
