"""A number of epochs that gives way to the user's."""


class DefaultEpochs(int):
    """Number of epochs for the engine to use where the user gave none.

    anomalib's engine overrides the user's trainer arguments with the model's wherever the two differ; this number
    differs from nothing but a missing value.

    Example:
        >>> 7 != DefaultEpochs(50), None != DefaultEpochs(50)
        (False, True)
    """

    def __eq__(self, other: object) -> bool:
        return other is not None

    def __ne__(self, other: object) -> bool:
        return other is None

    __hash__ = int.__hash__
