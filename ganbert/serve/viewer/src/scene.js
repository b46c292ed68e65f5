// The T1w with the PET on top, drawn by NiiVue.
import { MULTIPLANAR_TYPE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";

// [slice type, whether a volume is drawn beside the planes]
export const LAYOUTS = {
  "Planes, 3D": [SLICE_TYPE.MULTIPLANAR, SHOW_RENDER.ALWAYS],
  Planes: [SLICE_TYPE.MULTIPLANAR, SHOW_RENDER.NEVER],
  Axial: [SLICE_TYPE.AXIAL, SHOW_RENDER.NEVER],
  Coronal: [SLICE_TYPE.CORONAL, SHOW_RENDER.NEVER],
  Sagittal: [SLICE_TYPE.SAGITTAL, SHOW_RENDER.NEVER],
  "3D": [SLICE_TYPE.RENDER, SHOW_RENDER.ALWAYS],
};
export const COLORMAPS = ["hot", "inferno", "plasma", "viridis", "warm", "winter", "jet", "gray"];

export class Scene {
  // onValues: told of the values at a place, whenever they change
  constructor(canvas, onValues) {
    this.canvas = canvas;
    this.onValues = onValues;
    this.nv = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.35, 0.85, 1, 0.75],
      crosshairWidth: 1.2,
      crosshairWidthUnit: "mm",
      fontMinPx: 15,
      tileMargin: 6,
      fontColor: [0.85, 0.88, 0.92, 1],
      dragAndDropEnabled: false,
      isSliceMM: true,
      show3Dcrosshair: true,
      renderOverlayBlend: 1,
      logLevel: "error",
    });
    this.nv.onLocationChange = () => this.tellPlace();
    canvas.addEventListener("pointermove", (event) => this.point([event.clientX, event.clientY]));
    canvas.addEventListener("pointerleave", () => this.point(null));
  }

  // Reads both images; nothing is drawn before draw(). How they look is set in between.
  async load(t1w, pet) {
    if (!this.isAttached) {
      await this.nv.attachToCanvas(this.canvas);
      this.canvas.tabIndex = -1; // its frame has the focus and the keys
      this.isAttached = true;
    }
    this.clear();
    this.t1w = await NVImage.loadFromFile({ file: t1w, name: t1w.name, colormap: "gray" });
    this.pet = await NVImage.loadFromFile({ file: pet, name: pet.name, colormap: "hot" });
  }

  draw(layout) {
    // One plane while the images arrive: a volume is much work where there is no GPU.
    this.nv.opts.sliceType = SLICE_TYPE.AXIAL;
    this.nv.addVolume(this.t1w);
    this.nv.addVolume(this.pet);
    // The middle of the PET is that of the head; the middle of a T1w may be its neck.
    const [x, y, z] = this.pet.convertFrac2MM([0.5, 0.5, 0.5], true);
    this.nv.scene.crosshairPos = this.nv.mm2frac([x, y, z], 0, true);
    this.nv.scene.renderAzimuth = 120;
    this.nv.scene.renderElevation = 15;
    this.setLayout(layout);
    this.tellPlace();
  }

  clear() {
    while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0);
  }

  // Whether pictures are computed by the processor: then a volume takes seconds each time.
  isSlow() {
    const gl = this.nv.gl;
    const info = gl.getExtension("WEBGL_debug_renderer_info");
    const name = info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "";
    return /swiftshader|llvmpipe|software|basic render/i.test(name);
  }

  // Once a picture, however many controls have moved.
  refresh() {
    if (this.isPending || this.nv.volumes.length !== 2) return;
    this.isPending = true;
    requestAnimationFrame(() => {
      this.isPending = false;
      if (this.nv.volumes.length !== 2) return;
      this.nv.updateGLVolume();
      this.tellPlace();
    });
  }

  // The value below which 99.9 % of the voxels lie, over all frames; and the largest one.
  statistics() {
    const values = Float32Array.from(this.pet.img).sort();
    const at = (share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
    return { lowest: values[0], middle: at(0.5), high: at(0.999), highest: values.at(-1) };
  }

  numFrames() {
    return this.pet.nFrame4D;
  }

  setFrame(frame) {
    this.pet.frame4D = frame;
    this.refresh();
  }

  setRange(low, high) {
    this.pet.cal_min = low;
    this.pet.cal_max = high;
    this.refresh();
  }

  setOpacity(opacity) {
    this.pet.opacity = opacity;
    this.refresh();
  }

  setColormap(name) {
    this.pet.colormap = name;
    this.refresh();
  }

  colours(name) {
    return this.nv.colormap(name);
  }

  setLayout(name) {
    const [type, render] = LAYOUTS[name];
    this.nv.opts.multiplanarShowRender = render;
    const isGrid = render === SHOW_RENDER.ALWAYS;
    this.nv.opts.multiplanarLayout = isGrid ? MULTIPLANAR_TYPE.GRID : MULTIPLANAR_TYPE.AUTO;
    this.nv.setSliceType(type);
  }

  move(x, y, z) {
    this.pointer = null;
    this.nv.moveCrosshairInVox(x, y, z);
    this.tellPlace();
  }

  turn(azimuth, elevation) {
    const { renderAzimuth, renderElevation } = this.nv.scene;
    this.nv.setRenderAzimuthElevation(renderAzimuth + azimuth, renderElevation + elevation);
  }

  isTurning() {
    return this.nv.opts.sliceType === SLICE_TYPE.RENDER;
  }

  // Values are told where the pointer is, or at the crosshair, whichever has moved last.
  point(place) {
    this.pointer = place;
    this.tellPlace();
  }

  tellPlace() {
    if (this.nv.volumes.length !== 2) return;
    const frac = this.pointer && this.fracAt(this.pointer);
    if (frac && frac[0] >= 0) this.tell(frac, true);
    else this.tell(this.nv.scene.crosshairPos, false);
  }

  fracAt([x, y]) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return this.nv.canvasPos2frac([(x - box.left) * scale, (y - box.top) * scale]);
  }

  tell(frac, isPointer) {
    const mm = this.nv.frac2mm(frac, 0, true);
    const [t1w, pet] = this.nv.volumes.map((volume) => valueAt(volume, mm));
    this.onValues({ mm: [mm[0], mm[1], mm[2]], t1w, pet, isPointer });
  }
}

// undefined outside of the image: no value is not the value 0
function valueAt(volume, mm) {
  const vox = volume.mm2vox(mm);
  const isInside = vox.every((v, k) => v >= 0 && v < volume.dimsRAS[k + 1]);
  return isInside ? volume.getValue(vox[0], vox[1], vox[2], volume.frame4D) : undefined;
}
