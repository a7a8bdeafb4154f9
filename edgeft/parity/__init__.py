"""Is every form of a model (adapter, merged weights, exported files) still the model that was trained?"""
