"""The backend that runs a torch model in this process."""
