"""Style augmentation (SASSL): Algorithm 1, stylizers, style banks, stylized data sets, distillation."""
