"""The book measured beside what a reader would use instead; `make bench` runs all of it."""
