"""The TRRG model, one class a part."""
