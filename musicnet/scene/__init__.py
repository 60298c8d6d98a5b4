"""What is out there, and what the array hears of it."""
