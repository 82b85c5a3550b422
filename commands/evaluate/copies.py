def copies_of(*a):
    raise ValueError
