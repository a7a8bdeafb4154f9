"""What the machine at hand can do, told by the standard library alone: everyone may ask, nothing is imported."""
