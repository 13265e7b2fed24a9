"""What operators type, by what it is about; each module adds its commands to the program."""
