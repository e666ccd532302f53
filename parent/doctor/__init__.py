"""What a server needs of the machine that it runs on, looked at before it starts (``stublet doctor``)."""
