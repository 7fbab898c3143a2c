# Loads an image, which its name pins by its content; a job.
# Arguments: the image.
export LC_ALL=C
docker pull --quiet -- "$1"
