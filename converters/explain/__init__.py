"""Why a conversion ended as it did: which layer lost accuracy, why something is not faster, in words and pictures."""
