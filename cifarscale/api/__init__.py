"""What `import cifarscale` gives to scripts and notebooks."""
