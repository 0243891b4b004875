"""What each part of TRRG is worth: the same run with one part taken away, several seeds each, one table."""
