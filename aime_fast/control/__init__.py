"""Acting with a trained model: planning in imagination, and episodes in the simulator."""
