"""The workstation room: shrinks a trained model for its hardware and proves the result on the device's runtime."""
