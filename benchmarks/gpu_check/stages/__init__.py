"""What runs in a process of its own: one function a job, `function(emit, device, **options)`."""
