def summarise(*a):
    return {}


def show(*a):
    pass
