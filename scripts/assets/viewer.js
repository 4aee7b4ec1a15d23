/* Ball-and-stick viewer of a trajectory on a canvas: drag to turn, the slider and the button move through time. */
function tesseralViewer(root) {
  const scene = JSON.parse(root.querySelector("script").textContent);
  const canvas = root.querySelector("canvas"), slider = root.querySelector("input");
  const button = root.querySelector("button"), context = canvas.getContext("2d");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const count = scene.frames.length, atoms = scene.radii.length;
  let turn = [1, 0, 0, 0, 1, 0, 0, 0, 1], playing = count > 1 && !still, spinning = !still, time = 0, last = 0;

  const points = scene.frames.flatMap((f) => Array.from({ length: atoms }, (_, i) => Math.hypot(f[3*i], f[3*i+1], f[3*i+2])));
  for (const edge of scene.edges) for (const p of edge) points.push(Math.hypot(...p));
  const reach = Math.max(...points) + Math.max(...scene.radii);

  const sprites = Object.fromEntries([...new Set(scene.colours)].map((colour) => [colour, ball(colour)]));
  function ball(colour) {
    const sprite = document.createElement("canvas");
    sprite.width = sprite.height = 128;
    const pen = sprite.getContext("2d"), shade = pen.createRadialGradient(46, 41, 2, 58, 56, 70);
    shade.addColorStop(0, "#ffffff"); shade.addColorStop(0.38, colour); shade.addColorStop(1, darker(colour));
    pen.fillStyle = shade; pen.strokeStyle = "#2b3240"; pen.lineWidth = 4;
    pen.beginPath(); pen.arc(64, 64, 61, 0, 7); pen.fill(); pen.stroke();
    return sprite;
  }
  function darker(colour) {
    return "#" + [1, 3, 5].map((i) => Math.floor(parseInt(colour.slice(i, i + 2), 16) * 0.6).toString(16).padStart(2, "0")).join("");
  }
  function apply(x, y, z) {
    return [0, 3, 6].map((r) => turn[r] * x + turn[r + 1] * y + turn[r + 2] * z);
  }
  function rotate(about, angle) { // about: 0 = x, 1 = y of the screen
    const c = Math.cos(angle), s = Math.sin(angle);
    const m = about ? [c, 0, s, 0, 1, 0, -s, 0, c] : [1, 0, 0, 0, c, -s, 0, s, c];
    turn = [0, 3, 6].flatMap((r) => [0, 1, 2].map((k) => m[r] * turn[k] + m[r + 1] * turn[3 + k] + m[r + 2] * turn[6 + k]));
  }
  function draw() {
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    const scale = Math.min(width, height) * 0.47 / reach * (scene.edges.length ? 1 : Math.min(1.35, width / height));
    const flat = ([x, y, z]) => { const near = 1 / (1 - z / (6 * reach)); return [width / 2 + x * scale * near, height / 2 - y * scale * near, z, near]; };
    context.lineCap = "butt"; context.strokeStyle = "#a5abb5"; context.lineWidth = 1.2;
    for (const edge of scene.edges) {
      const [a, b] = edge.map((p) => flat(apply(...p)));
      context.beginPath(); context.moveTo(a[0], a[1]); context.lineTo(b[0], b[1]); context.stroke();
    }
    const frame = scene.frames[Math.floor(time) % count];
    const at = scene.radii.map((_, i) => flat(apply(frame[3 * i], frame[3 * i + 1], frame[3 * i + 2])));
    const items = at.map((p, i) => [p[2], () => { const r = scene.radii[i] * scale * p[3]; context.drawImage(sprites[scene.colours[i]], p[0] - r, p[1] - r, 2 * r, 2 * r); }]);
    context.lineCap = "round";
    for (const [i, j] of scene.bonds) items.push([Math.min(at[i][2], at[j][2]) - 0.01, () => {
      const a = at[i], b = at[j], m = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
      stick(a, b, 0.26 * scale, "#2b3240"); stick(a, m, 0.2 * scale, scene.colours[i]); stick(m, b, 0.2 * scale, scene.colours[j]);
    }]);
    items.sort((a, b) => a[0] - b[0]).forEach((item) => item[1]());
    if (slider) slider.value = Math.floor(time) % count;
  }
  function stick(a, b, width, colour) {
    context.strokeStyle = colour; context.lineWidth = width;
    context.beginPath(); context.moveTo(a[0], a[1]); context.lineTo(b[0], b[1]); context.stroke();
  }
  function tick(now) {
    const passed = Math.min(now - last, 100); last = now;
    if (playing) time = (time + passed * 0.018) % count;
    if (spinning) rotate(1, passed * 0.00022);
    if (playing || spinning) draw();
    requestAnimationFrame(tick);
  }
  let held = null;
  canvas.addEventListener("pointerdown", (e) => { held = [e.clientX, e.clientY]; spinning = false; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", (e) => {
    if (!held) return;
    rotate(1, (e.clientX - held[0]) * 0.01); rotate(0, (e.clientY - held[1]) * 0.01);
    held = [e.clientX, e.clientY]; draw();
  });
  canvas.addEventListener("pointerup", () => { held = null; });
  if (slider) slider.addEventListener("input", () => { playing = false; time = +slider.value; label(); draw(); });
  if (button) button.addEventListener("click", () => { playing = !playing; label(); });
  function label() { if (button) button.textContent = playing ? "Pause" : "Play"; }
  root.classList.add("live"); label(); draw(); addEventListener("resize", draw); requestAnimationFrame(tick);
}
document.querySelectorAll(".viewer").forEach(tesseralViewer);
