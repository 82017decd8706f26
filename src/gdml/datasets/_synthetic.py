def synthetic(*args, **kwargs):
    raise NotImplementedError
