"""What the machine at hand can do, and what systems do differently: everyone may ask, only errors are imported."""
