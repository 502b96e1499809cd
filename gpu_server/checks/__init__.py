"""What `gpu-server check` looks at: one module a subject, one function a finding; torch and Gunicorn in subprocesses."""
