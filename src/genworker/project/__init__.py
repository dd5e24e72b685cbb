"""Opens a data root and says what is to be done in it; makes no call and holds no lock."""
