"""What users do with a potential: ASE calculator, relaxation, molecular dynamics."""
