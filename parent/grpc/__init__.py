"""gRPC: the GRPCInferenceService, health and reflection, on grpcio."""
